"""Several grids that serve one model: what each tells of itself, who gets a request, how many there
are. Pure: no clock, no I/O; the product and the twin use the same objects."""
