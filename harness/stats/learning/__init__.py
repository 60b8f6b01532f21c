"""What makes methods comparable: that they learned equally, and a learning rate that each chose in the same way."""
