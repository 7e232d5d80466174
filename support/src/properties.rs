//! What reads bytes from elsewhere neither panics nor takes memory without bound, whatever they are.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fmt::Debug;
use std::fs;
use std::path::Path;

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, ImageEncoder as _, Rgb, RgbImage};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use safetensors::SafeTensors;

use crate::assets::archive::Zip;
use crate::assets::archive::testing::pack;
use crate::assets::tests::{package, unpack};
use crate::classifier::ModelInfo;
use crate::dataset::ImageDataset;
use crate::model::weights;
use crate::pipeline::{decode_within, is_turned, readable};
use crate::settings::Settings;

const CASES: u32 = 10_000;

/// The system's allocator, which counts what the thread holds.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    HELD.set(HELD.get().wrapping_add(bytes));
    PEAK.set(PEAK.get().max(HELD.get()));
}

// Safety: the system's allocator does it all.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Returns what `f` returns, and the most bytes that this thread held meanwhile over what it held before.
pub(crate) fn measured<T>(f: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    PEAK.set(before);
    let result = f();
    (result, (PEAK.get() - before) as usize)
}

/// Runs `parse` on values of a strategy, the same ones every time; it may take `bytes_for` bytes.
#[track_caller]
fn holds<S: Strategy>(
    strategy: S,
    bytes_for: impl Fn(&S::Value) -> usize,
    parse: impl Fn(&S::Value),
) where
    S::Value: Debug,
{
    let config = Config {
        cases: CASES,
        failure_persistence: None,
        ..Config::default()
    };
    let random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, random);
    let result = runner.run(&strategy, |value| {
        let ((), taken) = measured(|| parse(&value));
        let allowed = bytes_for(&value);
        prop_assert!(taken <= allowed, "{taken} bytes taken, {allowed} allowed");
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

/// A change of a file at some place.
#[derive(Clone, Copy, Debug)]
enum Change {
    Set(u8),
    Flip(u8),
    Insert(u8),
    /// Four bytes at once, which lengths often are.
    Word(u32),
    CutOff,
}

fn changes() -> impl Strategy<Value = Vec<(Index, Change)>> {
    let change = prop_oneof![
        any::<u8>().prop_map(Change::Set),
        (0..8u8).prop_map(|bit| Change::Flip(1 << bit)),
        any::<u8>().prop_map(Change::Insert),
        select(&[0, 1, 0x7fff_ffff, 0x8000_0000, u32::MAX, 0xffff][..]).prop_map(Change::Word),
        any::<u32>().prop_map(Change::Word),
        Just(Change::CutOff),
    ];
    prop::collection::vec((any::<Index>(), change), 1..6)
}

fn changed(mut bytes: Vec<u8>, changes: &[(Index, Change)]) -> Vec<u8> {
    for &(at, change) in changes {
        if bytes.is_empty() {
            break;
        }
        let at = at.index(bytes.len());
        match change {
            Change::Set(value) => bytes[at] = value,
            Change::Flip(bits) => bytes[at] ^= bits,
            Change::Insert(value) => bytes.insert(at, value),
            Change::Word(word) => {
                let word = word.to_be_bytes();
                for (byte, value) in bytes[at..].iter_mut().zip(word) {
                    *byte = value;
                }
            }
            // Seldom much: the start of most files alone is refused at once.
            Change::CutOff => bytes.truncate(bytes.len() - (bytes.len() - at).min(64)),
        }
    }
    bytes
}

/// Files of these, with some changes.
fn damaged(files: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    (select(files), changes()).prop_map(|(file, changes)| changed(file, &changes))
}

/// Files of these with some changes, and what begins like one.
fn damaged_or_random(files: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let starts: Vec<Vec<u8>> = files
        .iter()
        .map(|file| file[..file.len().min(16)].to_vec())
        .collect();
    let random = (select(starts), prop::collection::vec(any::<u8>(), 0..200))
        .prop_map(|(start, rest)| [start, rest].concat());
    prop_oneof![4 => damaged(files), 1 => random]
}

/// The files in a reference that `tests/reference` made.
fn references(reference: &[u8]) -> Vec<Vec<u8>> {
    let reference = SafeTensors::deserialize(reference).unwrap();
    let mut files: Vec<_> = reference.tensors();
    files.sort_by(|(a, _), (b, _)| a.cmp(b));
    let files = files
        .into_iter()
        .filter(|(name, _)| name.ends_with(".file"));
    files.map(|(_, view)| view.data().to_vec()).collect()
}

const DECODE: &[u8] = include_bytes!("../tests/data/decode.safetensors");
const ORIENTATION: &[u8] = include_bytes!("../tests/data/orientation.safetensors");

#[test]
fn no_image_file_panics_or_takes_more_memory_than_is_allowed() {
    const LIMIT: usize = 1 << 20;
    let files = [references(DECODE), references(ORIENTATION)].concat();
    // The image, once more what it is converted to or turned into, and tables.
    let allowed = |file: &Vec<u8>| {
        // A lossy WebP file's partition is made room for before it is read: its length has 24 bits.
        let partition = usize::from(file.starts_with(b"RIFF")) << 24;
        2 * LIMIT + partition + 4 * file.len() + (1 << 18)
    };
    holds(damaged_or_random(files), allowed, |file| {
        let _ = readable("image", || decode_within(LIMIT as u64, "image", file));
        is_turned(file);
    });
}

/// A progressive file keeps all coefficients until its end; so does one whose components come one after
/// the other.
#[test]
fn the_memory_that_decoding_a_jpeg_takes_is_known_before() {
    let references = SafeTensors::deserialize(DECODE).unwrap();
    for (name, bytes_per_pixel) in [("jpeg", 3), ("jpeg progressive", 6)] {
        let file = references.tensor(&format!("{name}.file")).unwrap();
        let mut file = file.data().to_vec();
        let is_frame = |two: &[u8]| two[0] == 0xff && [0xc0, 0xc2].contains(&two[1]);
        let frame = file.windows(2).position(is_frame).unwrap();
        let (height, width) = (2000u16, 3000u16);
        file[frame + 5..frame + 7].copy_from_slice(&height.to_be_bytes());
        file[frame + 7..frame + 9].copy_from_slice(&width.to_be_bytes());
        let needed = bytes_per_pixel * usize::from(height) * usize::from(width);
        let (_, taken) = measured(|| decode_within(u64::MAX, name, &file));
        println!("{name}: {taken} bytes, {needed} expected");
        assert!(
            (needed..needed + needed / 10).contains(&taken),
            "{name}: {taken}"
        );
        let (refused, taken) = measured(|| decode_within(needed as u64 - 1, name, &file));
        let reason = refused.unwrap_err().to_string();
        assert!(reason.contains("3000 x 2000 pixels take"), "{reason}");
        assert!(taken < 1 << 17, "{name}: {taken} bytes to refuse it");
    }
}

/// Few bytes a sample in a file become three a pixel, and several copies where one is made of another; a color profile
/// inflates.
#[test]
fn decoding_an_image_takes_at_most_twice_the_memory_allowed_whatever_its_samples_are() {
    const SIDE: u32 = 1000;
    const PIXELS: usize = (SIDE * SIDE) as usize;
    let zeros = vec![0; 8 * PIXELS];
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    for color in [
        ExtendedColorType::L8,
        ExtendedColorType::La8,
        ExtendedColorType::Rgb8,
        ExtendedColorType::Rgba8,
        ExtendedColorType::L16,
        ExtendedColorType::La16,
        ExtendedColorType::Rgb16,
        ExtendedColorType::Rgba16,
    ] {
        let samples = &zeros[..PIXELS * usize::from(color.bits_per_pixel()) / 8];
        let mut png = Vec::new();
        let encoder = PngEncoder::new(&mut png);
        encoder.write_image(samples, SIDE, SIDE, color).unwrap();
        files.push((format!("PNG {color:?}"), png));
        let mut webp = Vec::new();
        let encoder = WebPEncoder::new_lossless(&mut webp);
        if color.bits_per_pixel() / u16::from(color.channel_count()) == 8 {
            encoder.encode(samples, SIDE, SIDE, color).unwrap();
            files.push((format!("WebP {color:?}"), webp));
        }
    }
    let mut profile = Vec::new();
    let mut encoder = PngEncoder::new(&mut profile);
    encoder.set_icc_profile(vec![0; 50 * PIXELS]).unwrap();
    let samples = &zeros[..3 * PIXELS];
    let written = encoder.write_image(samples, SIDE, SIDE, ExtendedColorType::Rgb8);
    written.unwrap();
    files.push(("PNG with a profile".into(), profile));
    for (name, file) in files {
        let read = (1..=8).map(|bytes_per_pixel| {
            let limit = bytes_per_pixel * PIXELS;
            let (picture, taken) = measured(|| decode_within(limit as u64, &name, &file));
            let most = 2 * limit + 4 * file.len() + (1 << 18);
            assert!(taken <= most, "{name}: {taken} bytes, {limit} allowed");
            picture.is_ok()
        });
        let read: Vec<bool> = read.collect();
        println!("{name}: {read:?}");
        assert_eq!([read[1], read[7]], [false, true], "{name}");
    }
}

#[test]
fn no_safetensors_or_model_file_panics_or_takes_more_memory_than_its_size() {
    let model = r#"{"version":1,"classes":["cats","dogs"],"input":{"size":160,"resize":"bilinear",
        "mean":[0.5,0.5,0.5],"std":[0.5,0.5,0.5]},"backbone":{"architecture":"MobileNetV2","alpha":1.0,
        "weights":"tfhub"},"head":[{"class_name":"GlobalAveragePooling2D"},{"class_name":"Dropout",
        "rate":0.2,"seed":1},{"class_name":"Dense","name":"dense","inputs":1280,"units":1}],
        "loss":"binary_crossentropy","training":{"optimizer":{"name":"RMSprop","hyperparameters":
        {"learning_rate":0.0001}},"examples":2000,"batch_size":32,"seed":0,"augmented":false},
        "history":{"epochs":[]}}"#;
    let values = [0u8; 24];
    let view =
        || safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![2, 3], &values);
    let file = |model: String| {
        let metadata = [("model".to_owned(), model)].into();
        safetensors::serialize([("dense/kernel", view().unwrap())], Some(metadata)).unwrap()
    };
    let texts = damaged(vec![model.as_bytes().to_vec()])
        .prop_map(|text| String::from_utf8_lossy(&text).into_owned())
        .prop_map(file);
    let files = damaged_or_random(vec![file(model.to_owned())]);
    let allowed = |file: &Vec<u8>| 100 * file.len() + (1 << 14);
    holds(prop_oneof![texts, files], allowed, |file| {
        if let Ok((_, texts)) = weights::read_safetensors(file)
            && let Ok(info) = ModelInfo::read(&texts)
        {
            let _ = info.check([1280, 5, 5]);
        }
    });
}

/// Writes a file that the one of that name makes room for: to write over it, ext4 waits for the disk.
fn write_new(path: &Path, bytes: &[u8]) {
    let _ = fs::remove_file(path);
    fs::write(path, bytes).unwrap();
}

/// Reads weights from files of these with some changes.
fn hold_weights(files: Vec<Vec<u8>>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    // HDF5's reader makes room for all messages that an object's header claims, 65,535 at most.
    let allowed = |file: &Vec<u8>| 100 * file.len() + (4 << 20);
    holds(damaged_or_random(files), allowed, |file| {
        write_new(&path, file);
        let _ = weights::read(&path);
    });
}

#[test]
fn no_keras_file_panics_or_takes_more_memory_than_its_size() {
    use hdf5_writer::{DatasetBuilder, Hdf5Builder, WriteOptions};
    let mut builder = Hdf5Builder::new();
    for (path, shape) in [
        ("Conv1/Conv1/kernel:0", vec![1, 1, 2, 3]),
        ("bn_Conv1/bn_Conv1/gamma:0", vec![6]),
    ] {
        let values = [1f32; 6];
        builder = builder.dataset(DatasetBuilder::typed_data(path, shape, &values).unwrap());
    }
    hold_weights(vec![
        builder
            .into_plan()
            .unwrap()
            .encode(WriteOptions::default())
            .unwrap(),
    ]);
}

#[test]
fn no_pytorch_file_panics_or_takes_more_memory_than_its_size() {
    hold_weights(vec![
        include_bytes!("../tests/data/legacy.pth").to_vec(),
        include_bytes!("../tests/data/zip.pth").to_vec(),
    ]);
}

#[test]
fn no_zip_panics_or_takes_more_memory_than_its_entries_can_have() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.zip");
    let zip = pack(&[
        ("x/train/a/1.jpg", &[1; 300]),
        ("x/train/a/2.jpg", b"stored"),
        ("readme.txt", b""),
    ]);
    // What deflate makes of a byte.
    let allowed = |file: &Vec<u8>| 1032 * file.len() + (1 << 20);
    holds(damaged_or_random(vec![zip]), allowed, |file| {
        write_new(&path, file);
        if let Ok(zip) = Zip::open(&path) {
            for index in 0..zip.names().len() {
                let _ = zip.read(index);
            }
            let _ = zip.digest_of_images();
        }
    });
}

#[test]
fn no_package_panics_or_takes_more_memory_than_its_members() {
    use std::io::{Read as _, Write as _};
    let folder = tempfile::tempdir().unwrap();
    let (path, target) = (folder.path().join("a.tgz"), folder.path().join("member"));
    let packed = package(&[("other", b"other"), ("member", b"wanted")]);
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(&packed[..])
        .read_to_end(&mut plain)
        .unwrap();
    let repacked = damaged(vec![plain]).prop_map(|tar| {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(&tar).unwrap();
        packed.finish().unwrap()
    });
    let strategy = prop_oneof![damaged_or_random(vec![packed]), repacked];
    let allowed = |file: &Vec<u8>| 1032 * file.len() + (1 << 20);
    holds(strategy, allowed, |file| {
        write_new(&path, file);
        let _ = unpack(&path, "member", &target);
    });
}

#[test]
fn no_csv_file_panics_or_takes_more_memory_than_its_size() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("list.csv");
    for name in ["a.jpg", "b, c.jpg"] {
        fs::write(folder.path().join(name), b"picture").unwrap();
    }
    let settings = Settings::from_lookup(|_| None).unwrap();
    let lists = [
        "path,label,split\na.jpg,cats,train\n\"b, c.jpg\",dogs,train\na.jpg,cats,val\n",
        "\u{feff}label,path\r\ncats,a.jpg\r\n\"do\"\"gs\",\"b, c.jpg\"\r\n",
    ];
    let lists = lists.map(|list| list.as_bytes().to_vec()).to_vec();
    let allowed = |file: &Vec<u8>| 200 * file.len() + (1 << 16);
    holds(damaged_or_random(lists), allowed, |file| {
        write_new(&path, file);
        if let Ok(dataset) = ImageDataset::from_csv(&path, &settings) {
            let _ = dataset.split([8, 1, 1]);
        }
    });
}

#[test]
fn no_setting_panics() {
    const NAMES: [&str; 10] = [
        "TRANSFER_DATASET",
        "TRANSFER_LIMIT",
        "TRANSFER_EPOCHS",
        "TRANSFER_BATCH",
        "TRANSFER_SEED",
        "TRANSFER_DEVICE",
        "TRANSFER_PRECISION",
        "TRANSFER_BROKEN",
        "TRANSFER_DATA",
        "TRANSFER_CHECKPOINTS",
    ];
    let number = any::<u128>().prop_map(|number| number.to_string());
    let known = select(
        &[
            "all", "auto", "cpu", "cuda", "cuda:", "cuda:0", "skip", "stop",
        ][..],
    );
    let value = prop_oneof![
        number,
        known.prop_map(str::to_owned),
        prop::collection::vec(any::<char>(), 0..12).prop_map(String::from_iter),
    ];
    let variables = prop::collection::vec((select(&NAMES[..]), value), 0..3);
    holds(
        variables,
        |_| 1 << 14,
        |variables| {
            let lookup = |name: &str| {
                let found = variables.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| value.into())
            };
            if let Ok(settings) = Settings::from_lookup(lookup) {
                let _ = settings.to_string();
            }
        },
    );
}

/// The counter counts.
#[test]
fn memory_is_measured_at_its_peak() {
    let ((), taken) = measured(|| drop(vec![1u8; 1000]));
    assert!((1000..1100).contains(&taken), "{taken}");
    let picture = RgbImage::from_pixel(64, 64, Rgb([9; 3]));
    let mut file = Vec::new();
    JpegEncoder::new(&mut file).encode_image(&picture).unwrap();
    let (decoded, taken) = measured(|| decode_within(1 << 20, "flat", &file).unwrap());
    assert_eq!(decoded.dimensions(), (64, 64));
    assert!(taken >= 64 * 64 * 3, "{taken}");
}
