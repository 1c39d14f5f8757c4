# Copyright 2026 The ee_seg_ros authors
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""The contact sheet of a demo: what a person looks at to see whether it worked."""
from pathlib import Path

import numpy as np

from ee_seg_ros.evaluation.drawing import ACCENT, DIM, LINE, PANEL, TEXT, Page, overlay, scaled, text_width
from ee_seg_ros.evaluation.recording import exit_of
from ee_seg_ros.evaluation.report import distorted
from ee_seg_ros.inference.bundle import Bundle

WIDTH, MARGIN, GAP = 1880, 36, 14
CAPTION = 34          # pixels of a row below its pictures
PICTURES, MOST_ROWS = 2200, 8    # room for all rows, and no more than so many
# One colour per onboard exit, in order of depth, and that of frames that settled at none.
EXIT_COLORS = ((92, 200, 140), (84, 160, 232), (160, 124, 232), (232, 128, 196), (88, 212, 220), (204, 214, 96))
UNSETTLED = (232, 120, 84)
LOST = (120, 40, 48)


def pick_rows(frames: list, most: int) -> list:
    """[(frame, remark)] in order of time: telling frames first, the others spread over the run.

    frames: `recording.Frame`s that were measured. Telling are: one that settled at the earliest exit, the one that its
    refinement changed most for the better, and the best and the worst final mask.
    """
    shown = [frame for frame in frames if frame.received('mask')]
    remarks = {}

    chosen, apart = [], len(frames) / (2 * most)    # neighbours look the same

    def remark(candidates, key, text):
        candidates = [frame for frame in candidates if key(frame) is not None
                      and all(abs(frame.index - other.index) > apart for other in chosen)]
        if candidates:
            chosen.append(max(candidates, key=key))
            remarks[id(chosen[-1])] = text

    names = sorted({frame.trace().get('exit', '') for frame in shown if frame.flag('settled')})
    early = [frame for frame in shown if frame.flag('settled') and frame.trace()['exit'] == names[0]]
    remark(early[len(early) // 2:], lambda frame: 0, 'settled early')
    refined = [frame for frame in shown if frame.received('refined')]
    if any(frame.miou for frame in shown):
        remark(refined, _gain, 'refinement gained most')
        remark(shown, lambda frame: frame.miou.get('final'), 'best')
        remark(shown, lambda frame: -frame.miou['final'] if 'final' in frame.miou else None, 'worst')
    else:
        remark(refined, changed_share, 'refinement changed most')
    while shown and len(chosen) < min(most, len(shown)):
        places = [frame.index for frame in chosen] or [-1]
        free = [frame for frame in shown if all(frame is not other for other in chosen)]
        chosen.append(max(free, key=lambda frame: min(abs(frame.index - place) for place in places)))
    return [(frame, remarks.get(id(frame), '')) for frame in sorted(chosen, key=lambda frame: frame.stamp)][:most]


def _gain(frame):
    return frame.miou['refined'] - frame.miou['mask'] if {'refined', 'mask'} <= set(frame.miou) else None


def changed_share(frame) -> float | None:
    """Share of the pixels that differ between the onboard and the refined mask, 0..1; None if one is not there."""
    mask, refined = frame.mask('mask'), frame.mask('refined')
    if mask is None or refined is None or mask.shape != refined.shape:
        return None
    return float(np.count_nonzero(mask != refined) / mask.size)


def write(path: Path, frames: list, source, bundle: Bundle, summary: dict) -> None:
    """Write the contact sheet of a run as a PNG; frames: measured `recording.Frame`s, source: where they came from."""
    labelled = any(frame.miou for frame in frames)
    columns = ['camera image', 'onboard mask, at once', 'final mask'] + ['truth'] * labelled
    cell = (WIDTH - 2 * MARGIN - GAP * (len(columns) - 1)) // len(columns)
    height, width = source.frame(frames[0].index).image.shape[:2]
    cell_height = max(1, round(cell * height / width))
    most = int(np.clip(PICTURES // (cell_height + CAPTION), 2, MOST_ROWS))
    rows = [(frame, remark, source.frame(frame.index)) for frame, remark in pick_rows(frames, most)]
    legend = _legend_lines(bundle, WIDTH - 2 * MARGIN)
    top = 254
    page = Page(WIDTH, top + 30 + len(rows) * (cell_height + CAPTION + 10) + 28 * len(legend) + MARGIN)
    _header(page, summary)
    _timeline(page, frames, [frame for frame, _, _ in rows], summary, bundle, 168)
    for column, name in enumerate(columns):
        page.text(MARGIN + column * (cell + GAP), top + 8, name, 16, TEXT, bold=True)
    for number, (frame, remark, picture) in enumerate(rows):
        y = top + 30 + number * (cell_height + CAPTION + 10)
        _row(page, y, cell, cell_height, frame, remark, picture, bundle, labelled)
    _legend(page, page.height - MARGIN - 28 * len(legend) + 14, legend)
    page.save(path)


def source_name(source: str) -> str:
    """A source for a title: the last two parts of a path."""
    return '/'.join(Path(source).parts[-2:])


def _header(page, summary):
    """The title line and a row of panels with the figures of the run."""
    x = MARGIN + page.text(MARGIN, 40, 'ee_seg demo', 30, TEXT, bold=True) + 24
    title = (f"bundle {summary['bundle']}   ·   criterion {summary['criterion']}, {summary['operating_point']}   ·   "
             f"{source_name(summary['source'])}{distorted(summary)} at {summary['rate']:g} Hz")
    page.text(x, 42, title, 18, DIM, room=page.width - MARGIN - x)
    panels = _panels(summary)
    width = (page.width - 2 * MARGIN - GAP * (len(panels) - 1)) / len(panels)
    for number, (name, value, note) in enumerate(panels):
        x = MARGIN + number * (width + GAP)
        page.box(x, 70, width, 76, PANEL, 8)
        page.text(x + 14, 86, name, 13, DIM, room=width - 28)
        page.text(x + 14, 110, value, 22, ACCENT, bold=True, room=width - 28)
        page.text(x + 14, 133, note, 13, DIM, room=width - 28)


def _panels(summary):
    """[(name, value, note)] of what was measured."""
    panels = [('frames', str(summary['frames']), f"{summary['dropped']} dropped")]
    for kind, name in (('mask', 'onboard mask'), ('refined', 'refined mask')):
        if f'{kind}_ms' in summary:
            times = summary[f'{kind}_ms']
            panels.append((f'{name} after', f"{times['p50']:.0f} ms", f"p95 {times['p95']:.0f} ms"))
    if 'forwarded_share' in summary:
        panels.append(('ended onboard', f"{100 * (1 - summary['exit_shares'][-1]):.0f} % of frames",
                       f"{100 * summary['forwarded_share']:.0f} % forwarded"))
    if 'bytes_per_forwarded_frame' in summary:
        panels.append(('features per forwarded frame', f"{summary['bytes_per_forwarded_frame'] / 1e3:.1f} kB",
                       f"JPEG {summary['jpeg_bytes'] / 1e3:.1f}, WebP {summary['webp_bytes'] / 1e3:.1f} kB"))
    if 'miou' in summary:
        miou = summary['miou']
        value = f"{100 * miou['mask']:.1f} → {100 * miou['final']:.1f} %" if 'final' in miou else ''
        panels.append(('mIoU, onboard to final', value, f"refined frames {100 * miou['refined']:.1f} %"
                       if 'refined' in miou else 'no refined frames'))
    return panels


def exit_colors(bundle: Bundle) -> dict:
    """RGB by name of the onboard exits; beyond six they repeat."""
    return {exit_.name: EXIT_COLORS[place % len(EXIT_COLORS)] for place, exit_ in enumerate(bundle.onboard_exits)}


def frame_color(frame, bundle: Bundle) -> tuple:
    """The colour of the exit at which a frame ended."""
    if not frame.trace():
        return LOST if not frame.taken else LINE
    return exit_colors(bundle).get(exit_of(frame, bundle), UNSETTLED)


def _timeline(page, frames, shown, summary, bundle, y):
    """A strip with one bar per published frame in the colour of its exit, and what the colours mean."""
    width = page.width - 2 * MARGIN
    x = MARGIN + page.text(MARGIN, y, 'exit of each frame', 14, DIM) + 22
    colors = exit_colors(bundle)
    for name, share in zip(summary.get('exit_names', []), summary.get('exit_shares', [])):
        if name not in colors and bundle.split is None:
            continue    # without a split no frame is left unsettled
        page.box(x, y - 7, 14, 14, colors.get(name, UNSETTLED), 3)
        x += 20 + page.text(x + 20, y, f'{name} {100 * share:.0f} %', 14, TEXT) + 22
    if summary['dropped']:
        page.box(x, y - 7, 14, 14, LOST, 3)
        page.text(x + 20, y, 'dropped', 14, TEXT)
    slot = width / len(frames)
    for number, frame in enumerate(frames):
        left, right = round(MARGIN + number * slot), round(MARGIN + (number + 1) * slot)
        page.box(left, y + 16, max(1, right - left - (slot > 5)), 26, frame_color(frame, bundle))
        if any(frame is other for other in shown):
            page.marker((left + right) / 2, y + 45, 9, TEXT)


def _row(page, y, cell, height, frame, remark, picture, bundle, labelled):
    """One frame: its pictures and what there is to say about each."""
    for column, (pixels, caption) in enumerate(_cells(frame, remark, picture, bundle, cell, height, labelled)):
        x = MARGIN + column * (cell + GAP)
        if pixels is None:
            page.box(x, y, cell, height, PANEL)
        else:
            page.picture(x, y, pixels)
        page.runs(x, y + height + 16, caption, 14, room=cell)


def _cells(frame, remark, picture, bundle, cell, height, labelled):
    """[(picture or None, caption as runs)] of a row."""
    def colored(mask):
        return None if mask is None else overlay(picture.image, mask, bundle.palette, cell, height)

    def quality(kind):
        return [(f'   mIoU {100 * frame.miou[kind]:.1f}', TEXT, True)] if kind in frame.miou else []

    trace = frame.trace()
    about = [(frame.name, TEXT, False)] + ([(f'   {remark}', ACCENT, True)] if remark else [])
    cells = [(scaled(picture.image, cell, height), about)]
    verdict = [(trace.get('exit', 'mask'), frame_color(frame, bundle), True)]
    score, threshold = frame.number('score'), frame.number('threshold')
    if score is not None and threshold is not None:
        relation = '<' if score < threshold else '≥'
        verdict.append((f"   {trace.get('criterion', 'score')} {score:.3f} {relation} {threshold:.3f}", DIM, False))
    verdict.append((f"   {frame.delay_ms('mask'):.0f} ms", DIM, False))
    if trace.get('expert'):
        verdict.append((f"   expert {trace['expert']}", ACCENT, False))
    cells.append((colored(frame.mask('mask')), verdict + quality('mask')))
    cells.append((colored(frame.mask('final')), _final_caption(frame, bundle) + quality('final')))
    if labelled:
        truth = picture.labels
        cells.append((None if truth is None else colored(truth), [('no truth', DIM, False)] * (truth is None)))
    return cells


def _final_caption(frame, bundle):
    """Where the final mask of a frame came from."""
    if not frame.received('final'):
        return [('no final mask', ACCENT, True)]
    source = frame.trace().get('final_source', '')
    if source == 'refined' and frame.received('refined'):
        share = changed_share(frame)
        changed = '' if share is None else f'   {100 * share:.1f} % of pixels changed'
        return [('refined', UNSETTLED, True), (f"   {frame.delay_ms('refined'):.0f} ms{changed}", DIM, False)]
    kept = 'settled' if frame.flag('settled') else 'last exit' if exit_of(frame, bundle) else 'not forwarded'
    why = {'late': 'refinement came too late: the onboard mask', 'refused': 'refinement refused: the onboard mask',
           'onboard': f'{kept}: the onboard mask'}
    return [(why.get(source, source or 'final mask'), DIM, False)]


def _legend_lines(bundle, room):
    """The classes, broken into lines: [[(name, colour, x)]]."""
    lines, x = [[]], 0
    for info in bundle.classes:
        width = 26 + text_width(info.name, 15) + 30
        if x + width > room and lines[-1]:
            lines, x = [*lines, []], 0
        lines[-1].append((info.name, info.color, x))
        x += width
    return lines


def _legend(page, y, lines):
    """The colours of the classes with their names."""
    for line in lines:
        for name, color, x in line:
            page.box(MARGIN + x, y - 9, 18, 18, tuple(color), 4)
            page.text(MARGIN + x + 26, y, name, 15, TEXT)
        y += 28
