"""One page of HTML that shows a whole run: what is gathered from a store, and how it is drawn."""
