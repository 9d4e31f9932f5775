"""The known faults of FER2013, counted."""

from dataclasses import replace

import numpy as np

from fer_jax.data import duplicates, splits


def test_the_known_faults_of_the_real_data_are_counted(real):
    assert duplicates.summary(real) == duplicates.Duplicates(
        rows=35887,
        unique_images=34034,
        copies=1853,
        conflicting_images=57,
        conflicting_rows=160,
        blank_images=1,
        blank_rows=12,
    )


def test_the_official_split_of_the_real_data_leaks_what_is_known(real):
    ids = duplicates.image_ids(real.images)
    leaks = duplicates.leaks(ids, splits.make_split(real, "official").parts)
    assert leaks == {("train", "validation"): 270, ("train", "test"): 278, ("validation", "test"): 43}


def test_ids_number_distinct_images_by_first_appearance(small):
    images = small.images[[4, 2, 4, 7, 2]]
    assert duplicates.image_ids(images).tolist() == [0, 1, 0, 2, 1]


def test_faults_of_a_small_set_are_counted(small):
    images, labels = small.images[:8].copy(), np.zeros(8, np.int32)
    images[1] = images[0]
    images[3] = images[2]
    labels[3] = 5
    images[6] = images[7] = 0
    assert duplicates.summary(replace(small, images=images, labels=labels)) == duplicates.Duplicates(
        rows=8,
        unique_images=5,
        copies=3,
        conflicting_images=1,
        conflicting_rows=2,
        blank_images=1,
        blank_rows=2,
    )
