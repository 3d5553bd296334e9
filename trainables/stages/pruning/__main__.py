"""`python -m trainables.stages.pruning --check`: every model by every way to prune."""

from trainables.stages.pruning.check import main

if __name__ == "__main__":
    raise SystemExit(main())
