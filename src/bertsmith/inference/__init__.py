"""Step 5: a fitted classifier, and predictions for whole tables."""
