"""`python -m sawyer` is `sawyer`."""

from sawyer.cli.app import main

if __name__ == "__main__":
    main()
