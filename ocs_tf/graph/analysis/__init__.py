"""What passes need to know of a graph. Nothing here changes it."""
