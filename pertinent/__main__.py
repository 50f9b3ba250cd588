"""``python -m pertinent``."""

from pertinent.cli import main

if __name__ == "__main__":
    main()
