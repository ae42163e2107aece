"""`mmunlearn purge`: find and delete what is stored about people."""

from mmunlearn.purge.job import run_purge as run_purge
