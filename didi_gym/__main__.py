"""`python -m didi_gym` is the command `didi-gym`."""

from didi_gym.cli.main import main

if __name__ == "__main__":
    main()
