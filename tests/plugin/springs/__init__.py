"""A package of somebody else's, as small as one can be: a family that reads a format of its own. Nothing outside this folder
knows of it but the entry point that its installation leaves beside it."""
