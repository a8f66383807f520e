-- fenced
-- Make the stream and its group where they are absent. KEYS: lease, stream, books.
-- ARGV: token, group, committed position ("ms-seq"), accepted events as the lake knows them, the newest id that any table or
-- the alerts stand for. A Redis that lost its memory, or the end of it, is behind these. Ids must not run backwards, also
-- where its clock does: an entry with an id before them would be taken for one that is counted already.
local function group_exists()
  if redis.call('EXISTS', KEYS[2]) == 0 then return false end
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[2])) do
    if group[2] == ARGV[2] then return true end
  end
  return false
end
local function last_id()
  local info = redis.call('XINFO', 'STREAM', KEYS[2])
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then return info[i + 1] end
  end
end
local function parts(id)
  local milliseconds, sequence = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(milliseconds), tonumber(sequence)
end
local made = 0
if not group_exists() then
  made = 1
  local fresh = redis.call('EXISTS', KEYS[2]) == 0
  redis.call('XGROUP', 'CREATE', KEYS[2], ARGV[2], ARGV[3], 'MKSTREAM')
  if fresh then
    redis.call('HSET', KEYS[3], 'accepted', ARGV[4])
  end
end
local last_ms, last_sequence = parts(last_id())
local ms, sequence = parts(ARGV[5])
if last_ms < ms or (last_ms == ms and last_sequence < sequence) then
  redis.call('XSETID', KEYS[2], ARGV[5])
end
return made
