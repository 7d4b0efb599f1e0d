"""What three packages or more share, and what knows no mask, no attack and no record; it imports errors alone."""
