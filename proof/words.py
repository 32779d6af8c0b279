"""A proof in a few words, for tables, pages and terminals."""

from __future__ import annotations

from typing import Any

_COUNTS = {"quantized": "layers quantized", "tensors": "tensors traced", "pictures": "compared"}
_FIGURES = {
    "max_abs": ("max error ", ".1e", ""),
    "relative": ("", ".1e", " of the range"),
    "snr_db": ("SNR ", ".1f", " dB"),
    "mean_psnr_db": ("PSNR ", ".1f", " dB on average"),
    "min_psnr_db": ("PSNR at least ", ".1f", " dB"),
    "mean_ssim": ("SSIM ", ".4f", " on average"),
    "max_lpips": ("LPIPS at most ", ".3f", ""),
    "mean_clip_score": ("CLIP score ", ".2f", ""),
    "mean_clip_score_reference": ("the reference's ", ".2f", ""),
    "agreement": ("", ".1%", " of the labels agree"),
    "max_score_difference": ("scores within ", ".1e", ""),
}


def in_words(proof: Any) -> str:
    """One proof in a few words: what figures it has; manifests of other versions have others."""
    if not isinstance(proof, dict):
        return str(proof)
    said = [f"{proof[key]} {what}" for key, what in _COUNTS.items() if proof.get(key) is not None]
    if "quantized" in proof:
        said = said[:1]  # what was rounded is not traced, byte for byte, to its source
    same = "min_psnr_db" in proof and proof["min_psnr_db"] is None  # JSON has no infinity
    for key, (before, form, after) in _FIGURES.items():
        value = None if same and key == "mean_psnr_db" else proof.get(key)
        if isinstance(value, int | float):
            said.append(f"{before}{value:{form}}{after}")
    if same:
        said.append("identical")
    text = ", ".join(said) or str(proof.get("status") or "run, without figures")
    return f"FAILED: {text}" if proof.get("status") == "failed" else text
