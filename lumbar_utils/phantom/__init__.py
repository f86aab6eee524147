"""The synthetic cohort: from a person to DICOM files and tables, whose truth is known.

Person -> body -> tissue -> signal -> scanner -> files:

    person            every number that shapes a body
    disease           how people are drawn from a population: degrees of stenosis, degeneration, build
    randomisation     how they are drawn for domain randomisation, far beyond a population

    curve             the spine's curve and the straightened coordinates that go with it
    sacrum            from L5 down: transitional vertebrae, kyphosis, disc remnants
    profiles          the spine: every measure along its curve; disease enters here
    anatomy           the body: all structures together, and where its discs are (`DiscTruth`)

    tissue            the tissues, and the canvases that they are painted on
    texture           seeded three-dimensional noise
    vertebra          vertebral bodies and discs
    lesions           fractures, Schmorl's and Modic changes, marrow disease, herniation, haemangioma
    canal             thecal sac, cauda equina, ligamentum flavum, lateral recesses, neural foramina
    neural_arch       pedicles, facets, laminae, spinous processes, sacral wings, ribs
    surroundings      skin, fat, muscles, vessels, organs, iliac wings

    signal            relaxation times and signal equations
    protocol          planes, matrices and fields of view of every series
    imperfections     contrast, coil, noise and artefacts of every series
    scanner           slices through a body, k-space, pixels

    reader_model      labels as a radiologist would give them, and the best possible score against them
    annotator         annotated points with jitter and annotation errors
    dataset_quirks    which series, slice numbers and labels a real collection would have
    writer            DICOM files
    tables            the competition's tables, and the truth
    cohort            all of it for many studies: `generate_cohort`

Nothing is exported here, so that importing one step never pulls in the others.
"""
