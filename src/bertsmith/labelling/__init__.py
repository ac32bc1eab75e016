"""Label texts from scratch: choice of the next texts, agreement of coders, and a stopping rule."""
