"""Share an index: build it, push it to the Hub, and use it as somebody else would.

    hf auth login
    python -m examples.share_an_index images/ ORG/NAME --masks masks/ --label-names 1=liver \\
        --license cc-by-4.0 --origin "our own CT, anonymised"

Research use only, not for diagnosis.

Needs medretrieval: installed, or run it in the folder of a clone. HF_ENDPOINT names another Hub
than huggingface.co.

Expect: the index in WORK/index, unless there is one; a private data set ORG/NAME with the tag v1;
the same index, file by file, in WORK/pulled; and the cases most like the query (the first image of
the folder, or --query), found in the index of the Hub, of which only what a search needs is
fetched. Run again with the same --work, it embeds and sends nothing that is there already.

A new data set is private: only you and your organisation see it. Before you make it public: have
you the right to pass the images on, and is nobody's name in file names, tables or pixels? push
refuses what it recognises, which is not all. --no-publish-images publishes embeddings, positions
and labels alone.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import medretrieval as mr


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help="a folder of images, or a CSV table of them")
    parser.add_argument("repo", metavar="ORG/NAME", help="the data set to publish")
    parser.add_argument("--masks", type=Path, help="folder of label maps of the same file names")
    parser.add_argument("--label-names", default="", metavar="1=liver,2=spleen")
    parser.add_argument("--embedder", default="efficientnet-lite0")
    parser.add_argument("--license", default="unknown", help="of the images, such as cc-by-4.0")
    parser.add_argument("--origin", help="where the images come from, in words")
    parser.add_argument(
        "--publish-images", dest="images_too", action=argparse.BooleanOptionalAction
    )
    parser.add_argument("--query", type=Path, help="an image or volume (default: of the folder)")
    parser.add_argument("--work", type=Path, help="folder for index and copy (default: temporary)")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as temporary:
        share(options, options.work or Path(temporary))


def share(options: argparse.Namespace, work: Path) -> None:
    index = work / "index"
    if not index.exists():
        pairs = (pair.split("=") for pair in options.label_names.split(",") if pair)
        mr.build_index(
            options.images,
            index,
            embedder=options.embedder,
            masks=options.masks,
            label_names={int(value): name for value, name in pairs},
            license=options.license,
            origin=options.origin,
        )

    # What is published is checked first; nothing is sent if the index or its licence is not right.
    pushed = mr.push(index, options.repo, images=options.images_too)
    print(f"pushed {pushed.repo} {pushed.tag}, commit {pushed.commit[:12]}: {pushed.sent} bytes")
    if pushed.withheld is not None:
        print(f"  without images and masks: {pushed.withheld}")

    # All of it in a folder, every file compared with its sha256.
    name = f"{pushed.repo}@{pushed.tag}"
    copy = mr.pull(name, work / "pulled", force=True)
    print(f"pulled {sum(path.is_file() for path in copy.rglob('*'))} files to {copy}")

    # Or by its name, without a copy: pictures are fetched when they are looked at. A commit instead
    # of the tag is what to write down in a paper, since nobody can move it.
    opened = mr.open_index(f"{pushed.repo}@{pushed.commit}")
    query = options.query or next(p for p in sorted(options.images.rglob("*")) if p.is_file())
    for hit in opened.search(mr.read_volume(query), mode="rerank", k=5).hits:
        print(f"{hit.rank}. {hit.volume_id} slice {hit.slice_index}: {', '.join(hit.labels)}")


if __name__ == "__main__":
    main()
