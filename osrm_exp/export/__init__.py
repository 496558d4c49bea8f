"""A cell's merged model as files that others load."""
