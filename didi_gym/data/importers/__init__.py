"""Data sets of other formats as Minari data sets: one file for each format, whose `read` gives a `Recording`.

- `convert`: `import_file`, and which format a file is of;
- `d4rl` and `robomimic` (HDF5), `ogbench` (NPZ), `lerobot` (parquet);
- `reading`: arrays out of files that anyone may have written; `rows`: rows become episodes, and none crosses from one
  to the next; `fitting`: the spaces of an environment, or of the data alone.
"""
