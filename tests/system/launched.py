"""The face of runs_in_turn.py. It imports nothing at first: the processes that a run spawns read this file again."""

if __name__ == "__main__":
    from ds_train.ranks.entry import run_entry
    from tests.system.runs_in_turn import main

    run_entry(main)
