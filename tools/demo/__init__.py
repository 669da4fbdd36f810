"""``python -m mldb.tools.demo``: a training run recorded, killed, resumed, rewound, read back."""
