"""Run `python train.py --config-name default [key=value ...]`."""

from mmunlearn.cli import train_main

if __name__ == "__main__":
    train_main()
