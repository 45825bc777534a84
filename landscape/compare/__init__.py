"""Do two networks behave alike? Laws of their outputs, ablations, and the path between them."""
