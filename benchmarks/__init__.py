"""What safety costs, side by side with what there is without it."""
