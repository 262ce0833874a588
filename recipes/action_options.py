"""Help of options about actions, which several commands take."""

REPRESENTATION = (
    "how actions are learned: as recorded; delta, each minus the one before; relative_to_first, each minus the state "
    "where the window or chunk begins. Recorded deltas stay absolute. What comes out is as recorded"
)
ABSOLUTE_DIMENSIONS = "action dimensions that are no differences, by names or numbers; null = grippers by name"
