"""The rows of the table of known image sources; `medretrieval.index.sources` reads it.

As known, unverified: nobody looked the terms up at the sources when this was written, and they
change. Where the terms were not known for sure it says "unknown". The terms at a source's own page
are what counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Pictures = Literal["allowed", "forbidden", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A known source of images.

    Attributes:
        key: short name.
        title: as an index should name it (`medretrieval build --source`).
        homepage: where the images and their terms are; empty if there is none.
        license: an identifier of the Hub where there is one, else a few words.
        images: whether pictures and masks of it may be passed on in an index.
        why: what that rests on.
        citation: what to cite.
        aliases: what else names it in a text; letter case and punctuation do not matter, and a
            number may follow ("brats" is found in "BraTS2021").
        layout: as `medretrieval table` calls the layout of its folder; None where it knows none.
    """

    key: str
    title: str
    homepage: str
    license: str
    images: Pictures
    why: str
    citation: str
    aliases: tuple[str, ...]
    layout: str | None = None


ROWS = (
    Source(
        key="phantoms",
        title="synthetic phantoms, computed from formulas; no patient data",
        homepage="",
        license="apache-2.0",
        images="allowed",
        why="made by this project; nobody's image",
        citation="this project",
        aliases=("synthetic phantoms computed from formulas", "medretrieval phantoms"),
    ),
    Source(
        key="acdc",
        title="ACDC (Automated Cardiac Diagnosis Challenge, 2017)",
        homepage="https://www.creatis.insa-lyon.fr/Challenge/acdc/",
        license="cc-by-nc-sa-4.0",
        images="allowed",
        why="share alike, not for commercial use, with the citation",
        citation="Bernard et al., IEEE TMI 37(11), 2018",
        aliases=("acdc", "automated cardiac diagnosis challenge"),
        layout="acdc",
    ),
    Source(
        key="adni",
        title="ADNI (Alzheimer's Disease Neuroimaging Initiative)",
        homepage="https://adni.loni.usc.edu",
        license="data use agreement",
        images="forbidden",
        why="given to approved persons, who may not pass it on",
        citation="Petersen et al., Neurology 74(3), 2010",
        aliases=("adni", "alzheimer s disease neuroimaging initiative"),
    ),
    Source(
        key="amos",
        title="AMOS (abdominal multi-organ segmentation, 2022)",
        homepage="https://amos22.grand-challenge.org",
        license="unknown",
        images="unknown",
        why="its archive, its files and its paper name different Creative Commons licences",
        citation="Ji et al., NeurIPS Datasets and Benchmarks, 2022",
        aliases=("amos", "abdominal multi organ benchmark"),
    ),
    Source(
        key="brats",
        title="BraTS (multimodal brain tumour segmentation)",
        homepage="https://www.synapse.org/Synapse:syn51156910",
        license="unknown",
        images="unknown",
        why="given to registered persons, by terms that differ from year to year",
        citation="Menze et al., IEEE TMI 34(10), 2015",
        aliases=("brats", "brain tumor segmentation challenge"),
    ),
    Source(
        key="btcv",
        title="BTCV (Beyond the Cranial Vault, abdomen)",
        homepage="https://www.synapse.org/Synapse:syn3193805",
        license="unknown",
        images="unknown",
        why="given to registered persons; the terms on copies are not known here",
        citation="Landman et al., MICCAI challenge, 2015",
        aliases=("btcv", "beyond the cranial vault", "synapse multi atlas"),
    ),
    Source(
        key="busi",
        title="BUSI (breast ultrasound images)",
        homepage="https://scholar.cu.edu.eg/?q=afahmy/pages/dataset",
        license="unknown",
        images="unknown",
        why="mirrors name different licences; the authors' page names none",
        citation="Al-Dhabyani et al., Data in Brief 28, 2020",
        aliases=("busi", "breast ultrasound images dataset", "breast ultrasound images"),
    ),
    Source(
        key="chaos",
        title="CHAOS (combined healthy abdominal organ segmentation)",
        homepage="https://doi.org/10.5281/zenodo.3431873",
        license="cc-by-nc-sa-4.0",
        images="allowed",
        why="share alike, not for commercial use",
        citation="Kavur et al., Medical Image Analysis 69, 2021",
        aliases=(
            *("chaos challenge", "chaos dataset", "chaos train", "chaos mr", "chaos ct"),
            *("chaos t2", "chaos t1", "combined healthy abdominal organ segmentation"),
        ),
    ),
    Source(
        key="chexpert",
        title="CheXpert",
        homepage="https://stanfordmlgroup.github.io/competitions/chexpert/",
        license="Stanford research use agreement",
        images="forbidden",
        why="the research use agreement does not let copies be passed on",
        citation="Irvin et al., AAAI 33, 2019",
        aliases=("chexpert", "chexpert plus", "chexlocalize"),
    ),
    Source(
        key="cmr-t1",
        title="CMR T1-Map (cardiac T1 mapping)",
        homepage="",
        license="unknown",
        images="unknown",
        why="the papers that use it do not say where it is and by which terms",
        citation="the paper that you have it from",
        aliases=("cmr t1", "cmr t1 map", "cmr t1 mapping"),
    ),
    Source(
        key="covidx",
        title="COVIDx (CXR and CT)",
        homepage="https://github.com/lindawangg/COVID-Net",
        license="unknown",
        images="unknown",
        why="put together from many sources, each with terms of its own",
        citation="Wang et al., Scientific Reports 10, 2020",
        aliases=("covidx", "covid net", "covidx cxr", "covidx ct"),
    ),
    Source(
        key="ct-org",
        title="CT-ORG (TCIA)",
        homepage="https://doi.org/10.7937/tcia.2019.tt7f4v7o",
        license="cc-by-3.0",
        images="allowed",
        why="with the citation; the archive asks to pass its usage policy on",
        citation="Rister et al., Scientific Data 7, 2020",
        aliases=("ct org",),
    ),
    Source(
        key="drive",
        title="DRIVE (digital retinal images for vessel extraction)",
        homepage="https://drive.grand-challenge.org",
        license="unknown",
        images="unknown",
        why="for research; nothing is said of copies",
        citation="Staal et al., IEEE TMI 23(4), 2004",
        aliases=(
            *("digital retinal images for vessel extraction", "drive dataset", "drive retinal"),
            *("drive vessels", "drive grand challenge"),
        ),
    ),
    Source(
        key="fastmri",
        title="fastMRI",
        homepage="https://fastmri.med.nyu.edu",
        license="data sharing agreement",
        images="forbidden",
        why="the agreement does not let copies be passed on",
        citation="Knoll et al., Radiology: Artificial Intelligence 2(1), 2020",
        aliases=("fastmri", "fast mri"),
    ),
    Source(
        key="flare",
        title="FLARE (abdominal organ segmentation, 2021 to 2024)",
        homepage="https://flare22.grand-challenge.org",
        license="unknown",
        images="unknown",
        why="put together from many sources, each with terms of its own",
        citation="Ma et al., Medical Image Analysis 82, 2022",
        aliases=("flare challenge", "flare dataset", "miccai flare", "abdomenct 1k"),
    ),
    Source(
        key="kits",
        title="KiTS (kidney tumour segmentation, 2019 to 2023)",
        homepage="https://kits-challenge.org",
        license="cc-by-nc-sa-4.0",
        images="allowed",
        why="share alike, not for commercial use",
        citation="Heller et al., Medical Image Analysis 67, 2021",
        aliases=("kits 19", "kits 21", "kits 23", "kits challenge", "kits dataset"),
    ),
    Source(
        key="lidc-idri",
        title="LIDC-IDRI (TCIA)",
        homepage="https://doi.org/10.7937/K9/TCIA.2015.LO9QL9SX",
        license="cc-by-3.0",
        images="allowed",
        why="with the citation; the archive asks to pass its usage policy on",
        citation="Armato et al., Medical Physics 38(2), 2011",
        aliases=("lidc", "lidc idri", "luna 16"),
    ),
    Source(
        key="lits",
        title="LiTS (liver tumour segmentation, 2017)",
        homepage="https://competitions.codalab.org/competitions/17094",
        license="unknown",
        images="unknown",
        why="its terms are shown to registered persons only; MSD Task03 has the same images",
        citation="Bilic et al., Medical Image Analysis 84, 2023",
        aliases=(
            *("lits", "liver tumor segmentation benchmark", "liver tumor segmentation challenge"),
            *("liver tumour segmentation benchmark", "liver tumour segmentation challenge"),
        ),
    ),
    Source(
        key="medical-mnist",
        title="Medical MNIST (Kaggle)",
        homepage="https://www.kaggle.com/datasets/andrewmvd/medical-mnist",
        license="cc-by-sa-4.0",
        images="unknown",
        why="put together from other data sets, whose terms are not passed on with it",
        citation="the data set's page",
        aliases=("medical mnist",),
    ),
    Source(
        key="medmnist",
        title="MedMNIST v2",
        homepage="https://medmnist.com",
        license="cc-by-4.0",
        images="allowed",
        why="with the citation; DermaMNIST not for commercial use (CC BY-NC 4.0)",
        citation="Yang et al., Scientific Data 10, 2023",
        aliases=(
            *("medmnist", "pathmnist", "chestmnist", "dermamnist", "octmnist", "pneumoniamnist"),
            *("retinamnist", "breastmnist", "bloodmnist", "tissuemnist", "organamnist"),
            *("organcmnist", "organsmnist"),
        ),
        layout="medmnist",
    ),
    Source(
        key="mimic-cxr",
        title="MIMIC-CXR",
        homepage="https://physionet.org/content/mimic-cxr/",
        license="PhysioNet credentialed health data licence",
        images="forbidden",
        why="given to credentialed persons, who may not pass it on",
        citation="Johnson et al., Scientific Data 6, 2019",
        aliases=("mimic", "mimic cxr", "mimic cxr jpg", "mimiccxr"),
    ),
    Source(
        key="mnms",
        title="M&Ms (multi-centre, multi-vendor cardiac segmentation)",
        homepage="https://www.ub.edu/mnms/",
        license="unknown",
        images="unknown",
        why="given on request; the terms on copies are not known here",
        citation="Campello et al., IEEE TMI 40(12), 2021",
        aliases=("m ms challenge", "mnms", "m ms dataset"),
    ),
    Source(
        key="msd",
        title="MSD (Medical Segmentation Decathlon)",
        homepage="http://medicaldecathlon.com",
        license="cc-by-sa-4.0",
        images="allowed",
        why="share alike, with the citation",
        citation="Antonelli et al., Nature Communications 13, 2022",
        aliases=(
            *("msd medical segmentation decathlon", "medical segmentation decathlon"),
            *("medicaldecathlon", "medical decathlon", "msd task"),
            *("task 01 braintumour", "task 02 heart", "task 03 liver", "task 04 hippocampus"),
            *("task 05 prostate", "task 06 lung", "task 07 pancreas", "task 08 hepaticvessel"),
            *("task 09 spleen", "task 10 colon"),
        ),
        layout="msd",
    ),
    Source(
        key="nih-chestxray14",
        title="NIH ChestX-ray14",
        homepage="https://nihcc.app.box.com/v/ChestXray-NIHCC",
        license="no licence named",
        images="unknown",
        why="said to be free to use with a link, the citation and thanks; copies are not mentioned",
        citation="Wang et al., CVPR, 2017",
        aliases=(
            *("nih chestx ray", "nih chestxray", "chestx ray 14", "chestxray 14", "chestx ray 8"),
            *("chestxray 8", "nih 14", "nih chest x ray", "nih cxr", "nih cxr 14"),
        ),
    ),
    Source(
        key="openkbp",
        title="OpenKBP (head and neck planning CT)",
        homepage="https://github.com/ababier/open-kbp",
        license="unknown",
        images="unknown",
        why="the repository is MIT; the images come from TCIA collections with terms of their own",
        citation="Babier et al., Medical Physics 48(9), 2021",
        aliases=("openkbp", "open kbp"),
    ),
    Source(
        key="padchest",
        title="PadChest",
        homepage="https://bimcv.cipf.es/bimcv-projects/padchest/",
        license="data use agreement",
        images="forbidden",
        why="given on request, for the person that asked",
        citation="Bustos et al., Medical Image Analysis 66, 2020",
        aliases=("padchest",),
    ),
    Source(
        key="pi-cai",
        title="PI-CAI (prostate MRI)",
        homepage="https://pi-cai.grand-challenge.org",
        license="cc-by-nc-4.0",
        images="allowed",
        why="not for commercial use, with the citation",
        citation="Saha et al., The Lancet Oncology 25(7), 2024",
        aliases=("pi cai", "picai"),
    ),
    Source(
        key="radimagenet",
        title="RadImageNet",
        homepage="https://www.radimagenet.com",
        license="research agreement",
        images="forbidden",
        why="given on request under an agreement, for the research of the person that asked",
        citation="Mei et al., Radiology: Artificial Intelligence 4(5), 2022",
        aliases=("radimagenet", "rad imagenet", "radiology ai"),
        layout="radimagenet",
    ),
    Source(
        key="totalsegmentator",
        title="TotalSegmentator dataset (CT)",
        homepage="https://doi.org/10.5281/zenodo.6802613",
        license="cc-by-4.0",
        images="allowed",
        why="with the citation",
        citation="Wasserthal et al., Radiology: Artificial Intelligence 5(5), 2023",
        aliases=("totalsegmentator dataset", "totalsegmentator ct", "totalsegmentator dataset ct"),
        layout="totalsegmentator",
    ),
    Source(
        key="totalsegmentator-mri",
        title="TotalSegmentator MRI dataset",
        homepage="https://doi.org/10.5281/zenodo.11367004",
        license="unknown",
        images="unknown",
        why="its versions have different licences, CC BY-NC-SA 2.0 and CC BY 4.0",
        citation="Akinci D'Antonoli et al., Radiology 314(2), 2025",
        aliases=("totalsegmentator mri", "totalsegmentatormri", "totalsegmentator mr"),
        layout="totalsegmentator",
    ),
    Source(
        key="uk-biobank",
        title="UK Biobank imaging",
        homepage="https://www.ukbiobank.ac.uk",
        license="material transfer agreement",
        images="forbidden",
        why="given to approved projects, which may not pass it on",
        citation="Littlejohns et al., Nature Communications 11, 2020",
        aliases=("uk biobank", "ukbiobank", "ukbb"),
    ),
    Source(
        key="verse",
        title="VerSe (vertebrae segmentation, 2019 and 2020)",
        homepage="https://osf.io/t98fz/",
        license="cc-by-sa-4.0",
        images="allowed",
        why="share alike, with the citation",
        citation="Sekuboyina et al., Medical Image Analysis 73, 2021",
        aliases=("verse 19", "verse 20", "verse 2019", "verse 2020", "verse challenge"),
    ),
    Source(
        key="vindr-cxr",
        title="VinDr-CXR",
        homepage="https://physionet.org/content/vindr-cxr/",
        license="PhysioNet credentialed health data licence",
        images="forbidden",
        why="given to credentialed persons, who may not pass it on",
        citation="Nguyen et al., Scientific Data 9, 2022",
        aliases=("vindr", "vindr cxr", "vinbigdata"),
    ),
)
