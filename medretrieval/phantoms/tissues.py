"""How bright each tissue is: CT in HU, MR in units of about 0..1."""

from __future__ import annotations

import numpy as np

Tissue = dict[str, float]


def ct_trunk(rng: np.random.Generator) -> Tissue:
    """HU of the trunk without contrast medium, in the arterial or in the venous phase."""
    phase = rng.choice(["plain", "arterial", "venous"], p=[0.3, 0.3, 0.4])
    left = {"plain": 42, "arterial": rng.uniform(240, 360), "venous": rng.uniform(140, 180)}[phase]
    right = {"plain": 42, "arterial": rng.uniform(120, 420), "venous": rng.uniform(135, 175)}[phase]
    portal = {"plain": 40, "arterial": 75, "venous": rng.uniform(150, 190)}[phase]
    up = {"plain": 0.0, "arterial": 0.35, "venous": 1.0}[phase]
    early = {"plain": 0.0, "arterial": 1.0, "venous": 0.8}[phase]
    liver = rng.uniform(48, 64) + 50 * up
    marrow, cortex = rng.uniform(110, 190), rng.uniform(520, 760)
    return {
        "air": -1000,
        "fat": rng.uniform(-112, -98),
        "fat_texture": 7,
        "skin": 5,
        "muscle": rng.uniform(48, 60),
        "marrow": marrow,
        "rib_marrow": marrow,
        "bone_texture": 45,
        "cortex": cortex,
        "rib": cortex,
        "disc": 85,
        "epidural": -25,
        "csf": 14,
        "cord": 38,
        "cartilage": 105,
        "lung": rng.uniform(-880, -820),
        "lung_gradient": 45,
        "lung_texture": 16,
        "vessel_in_lung": 35 + 0.15 * right,
        "vessel_wall": 48,
        "myocardium": 46 + 55 * early,
        "blood_left": left,
        "blood_right": right,
        "portal": portal,
        "liver_vein": 38 if up < 0.5 else portal * 0.95,
        "liver": liver,
        "liver_texture": 4,
        "spleen": 48 + 70 * max(up, 0.8 * early),
        "bile": 8,
        "kidney_cortex": 34 + 150 * early,
        "kidney_medulla": 30 + (120 * up + 10 * early),
        "pelvis_urine": 8 if phase != "venous" else 15,
        "pancreas": 42 + 55 * early,
        "stomach_wall": 50 + 25 * early,
        "fluid": rng.uniform(5, 30),
        "gas": -960,
        "bowel_wall": 50 + 40 * early,
        "bowel_content": rng.uniform(10, 45),
        "stool": 25,
        "stool_texture": 90,
        "bladder": rng.choice([4.0, 6.0, 9.0]),
        "prostate_inner": 52 + 22 * early,
        "prostate_outer": 44 + 16 * early,
        "uterus": 55 + 45 * early,
        "vesicle": 30,
        "joint": 20,
        "cord_vessel": left,
    }


def film(tissue: Tissue) -> Tissue:
    """`tissue` as it counts on a radiograph: no contrast medium, bone lighter than the spine's HU
    make it at CT's harder rays, so that it does not outshine the heart."""
    plain = dict.fromkeys(("blood_left", "blood_right", "portal", "liver_vein", "myocardium"), 45.0)
    return tissue | plain | {"cortex": 430.0, "marrow": 120.0, "rib": 1150.0, "rib_marrow": 650.0}


def mr_t2_trunk(rng: np.random.Generator, *, fat: float) -> Tissue:
    """T2-weighted turbo spin echo; `fat` is bright (0.75) or, with fat suppression, dark (0.12)."""
    j = rng.uniform(0.9, 1.1, 8)
    return {
        "air": 0.0,
        "fat": fat,
        "fat_texture": 0.012 + 0.03 * fat,
        "skin": 0.3,
        "muscle": 0.2 * j[0],
        "marrow": 0.24 + 0.3 * fat,
        "bone_texture": 0.025,
        "cortex": 0.05,
        "rib": 0.05,
        "rib_marrow": 0.24 + 0.3 * fat,
        "disc": 0.42 * j[1],
        "epidural": 0.3,
        "csf": 1.0,
        "cord": 0.38,
        "cartilage": 0.3,
        "lung": 0.03,
        "lung_gradient": 0.012,
        "lung_texture": 0.006,
        "vessel_in_lung": 0.16,
        "vessel_wall": 0.2,
        "myocardium": 0.25,
        "blood_left": 0.07,
        "blood_right": 0.1,
        "portal": 0.66,
        "liver_vein": 0.6,
        "liver": 0.34 * j[2],
        "liver_texture": 0.012,
        "spleen": 0.58 * j[3],
        "bile": 0.9,
        "kidney_cortex": 0.66 * j[4],
        "kidney_medulla": 0.8,
        "pelvis_urine": 1.0,
        "pancreas": 0.38,
        "stomach_wall": 0.3,
        "fluid": 0.62,
        "gas": 0.02,
        "bowel_wall": 0.33,
        "bowel_content": 0.72 * j[5],
        "stool": 0.3,
        "stool_texture": 0.09,
        "bladder": 1.05,
        "prostate_inner": 0.36 * j[6],
        "prostate_outer": 0.72 * j[7],
        "uterus": 0.45,
        "vesicle": 0.8,
        "joint": 0.7,
        "cord_vessel": 0.08,
    }


def ct_head(rng: np.random.Generator) -> Tissue:
    """HU of the head, plain."""
    j = float(rng.normal(0, 1))
    return {
        "air": -1000,
        "fat": -90,
        "skin": 20,
        "muscle": 52,
        "bone": rng.uniform(950, 1250),
        "diploe": 520,
        "csf": 6,
        "grey": 39 + j,
        "white": 29 + j,
        "deep_grey": 38 + j,
        "dura": 58,
        "eye": 12,
        "eye_wall": 45,
        "lens": 75,
        "mucosa": 35,
        "plexus": rng.choice([40, 130, 300]),
        "pineal": rng.choice([45, 160, 320]),
    }


def mr_t1_head(rng: np.random.Generator) -> Tissue:
    """T1-weighted brain: white matter brighter than grey, dark fluid, bright fat."""
    j = rng.uniform(0.94, 1.06, 4)
    return {
        "air": 0.0,
        "fat": rng.uniform(0.8, 1.1),
        "skin": 0.45,
        "muscle": 0.36,
        "bone": 0.05,
        "diploe": rng.uniform(0.15, 0.4),
        "csf": 0.14 * j[0],
        "grey": 0.43 * j[1],
        "white": 0.7 * j[2],
        "deep_grey": 0.5 * j[3],
        "dura": 0.3,
        "eye": 0.15,
        "eye_wall": 0.35,
        "lens": 0.35,
        "mucosa": 0.4,
        "plexus": 0.35,
        "pineal": 0.4,
    }


def mr_cine(rng: np.random.Generator) -> Tissue:
    """Balanced steady-state free precession: bright blood, fluid and fat."""
    j = rng.uniform(0.9, 1.12, 5)
    return {
        "air": 0.0,
        "fat": 0.78 * j[0],
        "skin": 0.4,
        "muscle": 0.2 * j[1],
        "bone": 0.07,
        "marrow": 0.42,
        "lung": 0.05,
        "myocardium": 0.24 * j[2],
        "blood": 0.86 * j[3],
        "liver": 0.3 * j[4],
        "vein": 0.62,
        "spleen": 0.38,
        "gas": 0.02,
        "fluid": 0.8,
        "csf": 0.95,
    }


def mr_knee(rng: np.random.Generator) -> Tissue:
    """Proton density weighted, or with fat suppression (dark fat and marrow, bright fluid)."""
    j = rng.uniform(0.92, 1.08, 4)
    dark = {
        "fat": 0.16 * j[0],
        "marrow": 0.14 * j[0],
        "cartilage": 0.62 * j[1],
        "fluid": 1.05,
        "muscle": 0.36 * j[2],
        "vein": 0.75,
        "septum": 0.3,
        "skin": 0.3,
    }
    bright = {
        "fat": 0.88 * j[0],
        "marrow": 0.72 * j[0],
        "cartilage": 0.58 * j[1],
        "fluid": 0.8,
        "muscle": 0.34 * j[2],
        "vein": 0.45,
        "septum": 0.5,
        "skin": 0.45,
    }
    chosen = dark if rng.random() < 0.4 else bright
    return {"air": 0.0, "bone": 0.04, "ligament": 0.09 * j[3], "vessel": 0.06, **chosen}
