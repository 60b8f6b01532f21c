"""The parts of a report's page: blocks, sentences, grids, templates."""
