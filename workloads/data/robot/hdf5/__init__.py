"""HDF5 demonstrations in the layouts of robomimic, LIBERO and ALOHA, read with h5py."""
