"""Label texts from nothing: which texts come next, how well coders agree, and when the labels are enough."""
