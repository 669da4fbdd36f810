"""The Vulkan device: one shader, a ring of batches in flight, tables, and what CUDA is handed."""
