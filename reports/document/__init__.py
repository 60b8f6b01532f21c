"""What a report is made of: blocks, sentences, grids, templates."""
