"""What goes in, the starting pair, the yardstick, and what comes out: everything that is not the method."""
