"""Use an index that somebody published on the Hub: with datasets, huggingface_hub, safetensors.

    python examples/use_published_index.py ORG/NAME [--revision v1] [--row 7]
    python examples/use_published_index.py ORG/NAME --query vector.npy

Research use only, not for diagnosis.

Nothing of medretrieval is needed: pip install datasets huggingface_hub safetensors faiss-cpu pillow

Expect: what the index holds; the picture, mask and labels of a row; the rows most like it, twice:
by the FAISS file of the index through datasets, and by a matrix product of the safetensors file.
The last line says whether both agree, which an approximate kind of index need not do entirely.
The first run fetches and converts all pictures; `streaming=True` of load_dataset fetches what you
look at.

A query from outside has to be a vector of the very embedder that the index names: another model,
or the same with other preprocessing, gives neighbours that mean nothing. medretrieval makes it:
`open_index("ORG/NAME").query_embeddings(volume)`; its search takes the picture itself.

Security: a FAISS file that was manipulated can corrupt the memory of the process that reads it. Its
sha256 is compared with the manifest here, which shows that it belongs to this index, not that its
author means well: use it only of people you trust. `--no-faiss` reads none and makes an index of
the embeddings, as medretrieval does by itself.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from pathlib import Path

import faiss
import numpy as np
from datasets import get_dataset_config_names, load_dataset
from huggingface_hub import HfApi, hf_hub_download
from safetensors.numpy import load_file

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("repo", metavar="ORG/NAME")
parser.add_argument("--revision", default="main", help="a version such as v1, or a commit")
parser.add_argument("--embedder", help="of the index, if it has several (default: the first)")
parser.add_argument("--row", type=int, default=0, help="the row to find neighbours of")
parser.add_argument("--query", type=Path, help="a vector of the index's embedder, as .npy")
parser.add_argument("-k", type=int, default=5, help="number of neighbours")
parser.add_argument("--no-faiss", action="store_true", help="do not read the published FAISS file")
options = parser.parse_args()
repo, k = options.repo, options.k

# A tag can be moved, a commit cannot: everything below is of this one.
commit = HfApi().dataset_info(repo, revision=options.revision).sha
manifest = json.loads(
    Path(hf_hub_download(repo, "manifest.json", repo_type="dataset", revision=commit)).read_bytes()
)


def fetch(name: str) -> str:
    """The path of a file of the index, which is what the manifest says."""
    path = hf_hub_download(repo, name, repo_type="dataset", revision=commit)
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != manifest["files"][name]["sha256"]:
        raise SystemExit(f"{name} is not the file that manifest.json lists: do not use it")
    return path


# An index has one embedder, whose entry is the manifest itself, or more under "embedders".
sets = {manifest["embedder"]["name"]: manifest, **manifest.get("embedders", {})}
embedder = options.embedder or manifest["embedder"]["name"]
if embedder not in sets:
    raise SystemExit(f"{repo} has no embedder {embedder}; it has {', '.join(sets)}")
chosen = sets[embedder]
print(f"{repo} at {commit[:12]}: {manifest['counts']}, embedders {', '.join(sets)}")

# 1. The slices: a row each, with a picture, a mask where somebody annotated it, and labels.
slices = load_dataset(repo, revision=commit, split="train")
row = slices[options.row]
mask = None if row["mask"] is None else sorted(set(np.asarray(row["mask"]).ravel().tolist()))
size = None if row["image"] is None else row["image"].size  # None: published without pictures
print(f"row {options.row}: {row['volume_id']} slice {row['slice_index']}, image {size}")
print(f"  labels {row['labels']}, values in the mask {mask} of {manifest['vocabulary']}")

# 2. The embeddings: a table for each embedder, joined by row_id.
config = re.sub(r"[^A-Za-z0-9_.-]", "-", embedder)
if config not in (configs := get_dataset_config_names(repo, revision=commit)):
    raise SystemExit(f"{repo} has no table of embeddings for {embedder}, only {configs}")
vectors = load_dataset(repo, config, revision=commit, split="train")
if list(vectors["row_id"]) != list(slices["row_id"]):
    raise SystemExit("the tables do not have the same rows: do not use them")
query = np.asarray(vectors[options.row]["embedding"], np.float32)
if options.query:
    query = np.load(options.query).astype(np.float32).ravel()
    query /= np.linalg.norm(query)

# 3. Neighbours through datasets and FAISS. load_faiss_index also takes
#    "hf://datasets/ORG/NAME@REVISION/index.faiss", but then nobody checks the file.
faiss_file = chosen.get("faiss", "index.faiss")
if faiss_file in manifest["files"] and not options.no_faiss:
    vectors.load_faiss_index("embedding", fetch(faiss_file))
else:
    vectors.add_faiss_index("embedding", metric_type=faiss.METRIC_INNER_PRODUCT)
_, examples = vectors.get_nearest_examples("embedding", query, k=k)
by_faiss = examples["row_id"]

# 4. The same with nothing but the numbers: rows have norm 1, so that cosine is a product.
tensors = load_file(fetch(chosen.get("embeddings", "embeddings/embeddings.safetensors")))
numbers = tensors["embeddings"].astype(np.float32)
cosine = numbers @ query / np.linalg.norm(numbers, axis=1)
by_product = np.argsort(-cosine, kind="stable")[:k].tolist()

for rank, (place, case) in enumerate(zip(by_faiss, slices.select(by_faiss), strict=True), start=1):
    print(f"{rank}. {case['volume_id']} slice {case['slice_index']}: cosine {cosine[place]:.4f}")
same = len({*by_faiss} & {*by_product})
kind = chosen["index"]["kind"]
print(f"{same} of {len(by_product)} neighbours are the same by FAISS ({kind}) and by the product")
