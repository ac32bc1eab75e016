"""Places on disk: who may write to them, writing that is never half done, and what lies where in them."""
