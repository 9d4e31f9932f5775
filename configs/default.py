"""Every field of a run, with the paper's settings, or our readings of what the paper leaves open."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The paper's experiment on OpenFace."""
    config = ConfigDict()
    config.backbone = "openface"  # openface, vggface, resnet50, mobilenet
    config.alpha = 1.0  # width multiplier of mobilenet
    config.image_size = 0  # pixels; 0: the backbone's own, 96 for openface, 224 for the others
    # pretrained: converted weights; where there are none, the published ones are downloaded (up to VGG-Face's
    # 580 MB) and converted; auto: pretrained, or scratch where neither can be had; random: frozen in the same
    # way; scratch: random, nothing frozen.
    config.init = "auto"
    config.weights = ""  # directory of converted weights; empty: weights/BACKBONE (mobilenet: _ALPHA)
    config.seed = 0  # head, order of the images, dropout, augmentation
    config.seeds = 1  # how many are trained at once, seed, seed + 1, ...: for frozen parts computed once
    config.init_seed = 0  # a randomly initialised backbone
    config.epochs = 20
    config.batch_size = 32
    # Another than batch_size is traced besides, 0.3 s of a start; on a GPU a larger one may evaluate faster.
    config.eval_batch_size = 32
    config.drop_last = False  # Keras trains the last, smaller batch of an epoch
    config.class_weight = "none"  # or balanced: N / (classes * count) on every image's loss
    config.compute_dtype = "float32"  # of the backbone; bfloat16: faster on GPU and TPU, not on CPU
    config.checkpoint_minutes = 5.0  # also saved after an epoch, where the last is 10 s old

    config.freeze = ConfigDict()
    config.freeze.mode = "last"  # last: all but the last layers; all; layers: those named below; none
    config.freeze.last = 4
    config.freeze.layers = ("",)

    config.head = ConfigDict()
    config.head.pooling = "auto"  # avg for resnet50 and mobilenet, none (flatten) for the others
    config.head.batch_norm = True
    config.head.hidden = (0,)  # units of dense layers before the last; zeros are left out
    config.head.dropout = 0.0

    config.optimizer = ConfigDict()  # Keras's Adam
    config.optimizer.learning_rate = (1e-4,)  # several, (1e-3, 1e-4), are trained at once, as seeds are
    config.optimizer.beta_1 = 0.9
    config.optimizer.beta_2 = 0.999
    config.optimizer.epsilon = 1e-7

    config.data = ConfigDict()
    # A csv, a directory or an archive, also of your own class folders; empty: $FER2013, then data/, then the
    # embedded drawn faces.
    config.data.path = ""
    config.data.side = 0  # of your own images, pixels; 0: 48 where none is larger, else the backbone's own
    config.data.labels = ""  # FER+'s fer2013new.csv: its majority labels in place of FER2013's
    config.data.limit = 0  # use so many faces, evenly spread over the rows; 0: all
    config.data.drawn_faces = 4000  # how many are drawn
    # paper; paper_val_first; official: as published, by the folders train/, validation/ and test/; fractions
    config.data.split = "paper"
    config.data.fractions = (0.7, 0.1, 0.2)  # of train, validation and test, for the split of this name
    config.data.split_seed = 42
    config.data.deduplicate = False
    config.data.scaling = "auto"  # the backbone's own; unit: x/255, tf: x/127.5-1, caffe: BGR - means

    config.features = ConfigDict()
    config.features.reuse = True  # compute the frozen part once an image and keep it, where that can be
    config.features.max_gb = 40.0  # bound on what is kept in the cache on disk
    config.features.memory_gb = 2.0  # up to this size features are held in memory, else memory-mapped

    config.augment = ConfigDict()
    config.augment.flip = False  # alone, it leaves the frozen part computed once, for both views
    config.augment.rotation = 0.0  # largest turn, fraction of a full one
    config.augment.shift = 0.0  # largest shift, fraction of the side
    config.augment.contrast = 0.0  # largest relative change
    return config
