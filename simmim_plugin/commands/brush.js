let cells = [], colour = null;
const image = new Image();
function draw() {
    const canvas = element.querySelector('canvas'), { rows, columns } = props;
    if (!canvas) return;
    const side = props.value?.picture ? 24 : 0;
    canvas.width = columns * side;
    canvas.height = rows * side;
    const context = canvas.getContext('2d');
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    context.fillStyle = '#ff2a2ac0';
    cells.forEach((cell, i) => {
        if (cell === '1') context.fillRect((i % columns) * side, Math.floor(i / columns) * side, side, side);
    });
}
function show() {
    const { picture, cells: given } = props.value || {};
    cells = given ? given.split('') : Array(props.rows * props.columns).fill('0');
    if (picture && image.src !== picture) image.src = picture;
    draw();
}
function paint(event) {
    const box = element.querySelector('canvas').getBoundingClientRect();
    const column = Math.floor(((event.clientX - box.left) / box.width) * props.columns);
    const row = Math.floor(((event.clientY - box.top) / box.height) * props.rows);
    if (row < 0 || column < 0 || row >= props.rows || column >= props.columns) return;
    const i = row * props.columns + column;
    colour = colour ?? (cells[i] === '1' ? '0' : '1');
    cells[i] = colour;
    draw();
}
function hand_over() {
    if (!props.value?.picture) return;
    props.value = { ...props.value, cells: cells.join('') };
    trigger('input');
}
image.onload = draw;
element.addEventListener('pointerdown', (event) => {
    if (event.button === 0 && event.target.matches('canvas') && props.value?.picture) paint(event);
});
element.addEventListener('click', (event) => {
    if (event.target.matches('button')) { cells.fill('0'); draw(); hand_over(); }
});
addEventListener('pointermove', (event) => {
    if (colour !== null) (event.getCoalescedEvents?.() ?? [event]).forEach(paint);
});
for (const end of ['pointerup', 'pointercancel']) {
    addEventListener(end, () => { if (colour !== null) { colour = null; hand_over(); } });
}
watch('value', show);
show();
