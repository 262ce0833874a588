"""Pretrained video models behind one protocol, as diffusers publishes them; see docs/backbones.md.

`directory` finds and checks the files of a model, `models` loads them, `networks` are the networks, `wan_tokenizer` is
the tokenizer of all of them, `clock` says how each is sampled, `text` makes token embeddings of prompts. diffusers and
transformers are imported when a model is loaded, not before.
"""
