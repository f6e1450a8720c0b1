"""No Python surface: started by the batch, carried on by the port."""
