// Builds hello.wasm: `npm install && npm run build`.
//
// The engine inside componentize-js is made for the interfaces of WASI 0.2.10. jco brings
// those of 0.2.12, which add nothing that this example uses, so they are taken under the
// older number.
import { componentize } from '@bytecodealliance/componentize-js';
import { cp, mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const interfaces = 'node_modules/@bytecodealliance/jco/lib/wit/builtin/0.2.12';

const wit = await mkdtemp(join(tmpdir(), 'hello-wit-'));
try {
  await cp(interfaces, join(wit, 'deps'), { recursive: true });
  for (const name of await readdir(join(wit, 'deps'), { recursive: true })) {
    if (name.endsWith('.wit')) {
      const path = join(wit, 'deps', name);
      await writeFile(path, (await readFile(path, 'utf8')).replaceAll('0.2.12', '0.2.10'));
    }
  }
  await cp('world.wit', join(wit, 'world.wit'));
  const { component } = await componentize(await readFile('hello.js', 'utf8'), {
    witPath: wit,
    worldName: 'hello',
    enableFeatures: ['http', 'fetch-event'],
  });
  await writeFile('hello.wasm', component);
} finally {
  await rm(wit, { recursive: true });
}
