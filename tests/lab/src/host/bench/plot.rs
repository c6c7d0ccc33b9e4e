//! The table as a picture.

use std::path::Path;

use anyhow::{Result, anyhow};
use benches::count::Count;
use benches::time::Time;
use plotters::prelude::*;

use crate::host::bench::block::Row;
use crate::host::bench::ring::time_of;

/// Those of whom there is a bar, in this order; virtio would make all others look alike.
const SHOWN: [&str; 3] = ["ours", "C gcc", "C clang"];
const COLOURS: [RGBColor; 3] = [RGBColor(0x1f, 0x6f, 0xb4), RGBColor(0xb0, 0xb0, 0xb0), RGBColor(0x70, 0x70, 0x70)];

/// Draws instructions on the left and time on the right: a group of bars for each case.
pub(super) fn draw(path: &Path, counts: &[Count], times: &[Time]) -> Result<()> {
    drawn(path, counts, times).map_err(|error| anyhow!("{}: {error}", path.display()))
}

fn drawn(path: &Path, counts: &[Count], times: &[Time]) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::new(path, (1200, 480)).into_drawing_area();
    area.fill(&WHITE)?;
    let (left, right) = area.split_horizontally(600);
    let instructions = |name: &str, shape: &str, batch| {
        let same = |count: &&Count| count.rival == name && count.shape == shape && count.batch == batch;
        counts.iter().find(same).map(|count| count.instructions)
    };
    bars(&left, "instructions a request", &instructions)?;
    let ratio = |name: &str, shape: &str, batch| {
        Some(time_of(times, name, shape, batch)? / time_of(times, "C clang", shape, batch)?)
    };
    bars(&right, "time, in that of C clang", &ratio)?;
    area.present()?;
    Ok(())
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn bars(
    area: &Area<'_>,
    title: &str,
    value: &dyn Fn(&str, &str, u32) -> Option<f64>,
) -> Result<(), Box<dyn std::error::Error>> {
    let cases: Vec<(&str, u32)> =
        ["blk1", "blk11", "net_tx"].into_iter().flat_map(|shape| [1, 8, 32].map(|batch| (shape, batch))).collect();
    let all = || cases.iter().flat_map(|(shape, batch)| SHOWN.map(|name| value(name, shape, *batch)));
    let top = all().flatten().fold(0.0, f64::max) * 1.15;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 20))
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(50)
        .build_cartesian_2d(0.0..cases.len() as f64, 0.0..top.max(1.0))?;
    let name_of = |place: &f64| {
        let case = cases.get(place.floor() as usize);
        case.map_or_else(String::new, |(shape, batch)| format!("{shape}/{batch}"))
    };
    chart.configure_mesh().disable_x_mesh().x_labels(cases.len()).x_label_formatter(&name_of).draw()?;
    for (place, (name, colour)) in SHOWN.into_iter().zip(COLOURS).enumerate() {
        let bar = |(case, (shape, batch)): (usize, &(&str, u32))| {
            let from = case as f64 + 0.1 + 0.27 * place as f64;
            let height = value(name, shape, *batch)?;
            Some(Rectangle::new([(from, 0.0), (from + 0.25, height)], colour.filled()))
        };
        let legend = move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour.filled());
        chart.draw_series(cases.iter().enumerate().filter_map(bar))?.label(name).legend(legend);
    }
    chart.configure_series_labels().background_style(WHITE).border_style(BLACK).draw()?;
    Ok(())
}

/// Draws a group of bars for each line of a table: the three batches, then the goal and others, where there are such.
pub(super) fn draw_rows(path: &Path, rows: &[Row]) -> Result<()> {
    rows_drawn(path, rows).map_err(|error| anyhow!("{}: {error}", path.display()))
}

fn rows_drawn(path: &Path, rows: &[Row]) -> Result<(), Box<dyn std::error::Error>> {
    let height = 30 + 70 * rows.len() as u32;
    let area = SVGBackend::new(path, (900, height)).into_drawing_area();
    area.fill(&WHITE)?;
    let bars_of = |row: &Row| {
        let mut bars: Vec<(String, f64, RGBColor)> = Vec::new();
        for (batch, value) in ["batch 1", "batch 8", "batch 32"].into_iter().zip(row.values) {
            bars.push((batch.into(), value, COLOURS[0]));
        }
        bars.extend(row.goal.map(|goal| ("goal".into(), goal, RGBColor(0x50, 0xa0, 0x50))));
        bars.extend(row.others.iter().map(|(name, value)| ((*name).into(), *value, COLOURS[2])));
        bars
    };
    let top = rows.iter().flat_map(bars_of).map(|(_, value, _)| value).fold(1.0, f64::max);
    let text = ("sans-serif", 12).into_font();
    for (index, row) in rows.iter().enumerate() {
        let y = 20 + 70 * index as i32;
        area.draw(&Text::new(row.title.trim(), (10, y), text.clone()))?;
        for (place, (name, value, colour)) in bars_of(row).into_iter().enumerate() {
            let at = y + 9 * place as i32;
            let end = 400 + (value.max(0.0) / top * 420.0) as i32;
            area.draw(&Rectangle::new([(400, at), (end, at + 7)], colour.filled()))?;
            let small = ("sans-serif", 9).into_font();
            area.draw(&Text::new(name, (330, at - 1), small.clone()))?;
            area.draw(&Text::new(format!("{value:.0}"), (end + 4, at - 1), small))?;
        }
    }
    area.present()?;
    Ok(())
}

/// Draws one bar for each name.
pub(super) fn draw_bars(path: &Path, title: &str, bars: &[(&str, f64)]) -> Result<()> {
    bars_drawn(path, title, bars).map_err(|error| anyhow!("{}: {error}", path.display()))
}

fn bars_drawn(path: &Path, title: &str, bars: &[(&str, f64)]) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::new(path, (700, 420)).into_drawing_area();
    area.fill(&WHITE)?;
    let top = bars.iter().map(|(_, value)| *value).fold(1.0, f64::max) * 1.15;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 20))
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d((0..bars.len()).into_segmented(), 0.0..top)?;
    let name_of = |place: &SegmentValue<usize>| match place {
        SegmentValue::CenterOf(index) => bars.get(*index).map_or_else(String::new, |(name, _)| (*name).to_owned()),
        SegmentValue::Exact(_) | SegmentValue::Last => String::new(),
    };
    chart.configure_mesh().disable_x_mesh().x_label_formatter(&name_of).draw()?;
    let bar = |(index, (_, value)): (usize, &(&str, f64))| {
        let mut bar = Rectangle::new(
            [(SegmentValue::Exact(index), 0.0), (SegmentValue::Exact(index + 1), *value)],
            COLOURS[0].filled(),
        );
        bar.set_margin(0, 0, 30, 30);
        bar
    };
    chart.draw_series(bars.iter().enumerate().map(bar))?;
    area.present()?;
    Ok(())
}
