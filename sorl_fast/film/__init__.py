"""Films of a policy's episodes, rendered off screen: the very episodes that an evaluation counts."""
