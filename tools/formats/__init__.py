"""Files of tensors that others read and write: safetensors, npz, npy. Pure, but for the file."""
