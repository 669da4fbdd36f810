"""Repair: salvage what is readable of a damaged store into a new one, and name what is not.

``mldb.repair`` is :func:`mldb.tools.repair.repair.repair`. ``mldb.log.salvage`` finds frames;
``finding.py`` finds files and decides which copy of a commit counts; ``deciding.py`` says of each
version whether it can be had and of each that cannot, why. Nothing in the damaged folder is ever
opened for writing.
"""
