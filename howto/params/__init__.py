"""params.yaml as typed sections. A stage imports the sections that it uses, and no other.

So a new knob of `evaluate` changes no file that `train` depends on. All the same, `file.read_params`
checks the whole of params.yaml, whatever stage runs.
"""
