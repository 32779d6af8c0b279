"""Two artifacts side by side: graphs, weights, numbers, pictures and labels."""
