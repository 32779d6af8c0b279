"""A proof in a few words, for tables, pages and terminals."""

from __future__ import annotations

from typing import Any

_COUNTS = {"tensors": "tensors traced", "pictures": "compared"}
_FIGURES = {
    "max_abs": ("max error ", ".1e", ""),
    "relative": ("", ".1e", " of the range"),
    "snr_db": ("SNR ", ".1f", " dB"),
    "min_psnr_db": ("PSNR at least ", ".1f", " dB"),
    "max_score_difference": ("scores within ", ".1e", ""),
}


def in_words(proof: Any) -> str:
    """One proof in a few words: what figures it has; manifests of other versions have others."""
    if not isinstance(proof, dict):
        return str(proof)
    said = [f"{proof[key]} {what}" for key, what in _COUNTS.items() if proof.get(key) is not None]
    for key, (before, form, after) in _FIGURES.items():
        value = proof.get(key)
        if isinstance(value, int | float):
            said.append(f"{before}{value:{form}}{after}")
    if "min_psnr_db" in proof and proof["min_psnr_db"] is None:  # JSON has no infinity
        said.append("identical")
    text = ", ".join(said) or str(proof.get("status") or "run, without figures")
    return f"FAILED: {text}" if proof.get("status") == "failed" else text
