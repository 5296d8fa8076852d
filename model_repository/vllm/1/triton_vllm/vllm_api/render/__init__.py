"""Each kind of prompt becomes a generation: text, chat, media, embeddings and scores."""
