"""From exported models to numbers with confidence intervals, and to a page that shows them."""
