"""How the shapes world's networks are made: one file a stage, one resumable loop for all."""
